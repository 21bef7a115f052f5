"""--format templates, by the words of Go's text/template and docker's documentation."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.cli.template import Template, TemplateError
from pyrun.cli.template_functions import FUNCTIONS

DATA = {
    "ID": "abc123",
    "Names": "happy_turing",
    "Config": {"Env": ["PATH=/bin", "A=b"], "Tty": False, "Labels": {"b": "2", "a": "1"}, "User": None},
    "Count": 3,
    "Ratio": 0.5,
    "Mounts": [{"Source": "/a"}, {"Source": "/b"}],
    "Empty": [],
    "Text": "",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        # fields and values
        ("{{.ID}}", "abc123"),
        ("id={{.ID}}, {{ .Names }}!", "id=abc123, happy_turing!"),
        ("{{.Config.Env}}", "[PATH=/bin A=b]"),
        ("{{.Config.Labels}}", "map[a:1 b:2]"),
        ("{{.Config.Tty}} {{.Count}} {{.Ratio}}", "false 3 0.5"),
        ("{{.Config.User}}", "<no value>"),
        ("{{$.ID}}", "abc123"),
        ("no action", "no action"),
        ("", ""),
        ("a}}b", "a}}b"),
        # literals
        ('{{"a\\tb\\"c"}}', 'a\tb"c'),
        ("{{`raw\\n`}}", "raw\\n"),
        ('{{"}}"}}', "}}"),
        ("{{1}} {{-2}} {{1.5}} {{0x10}} {{true}}", "1 -2 1.5 16 true"),
        ('{{"\\u00e9\\x41"}}', "éA"),
        # docker's functions
        ("{{json .Config.Env}}", '["PATH=/bin","A=b"]'),
        ("{{json .Config.User}}", "null"),
        ('{{json "<&>"}}', '"<&>"'),
        ('{{split .Names "_"}}', "[happy turing]"),
        ('{{join .Config.Env ";"}}', "PATH=/bin;A=b"),
        ('{{title "some words"}}', "Some Words"),
        ("{{upper .ID}} {{lower .ID}}", "ABC123 abc123"),
        ("[{{pad .ID 1 2}}]", "[ abc123  ]"),
        ("[{{pad .Text 1 2}}]", "[]"),
        ("{{truncate .ID 3}} {{truncate .ID 99}}", "abc abc123"),
        # Go's functions
        ("{{index .Config.Env 1}}", "A=b"),
        ('{{index .Config.Labels "a"}}', "1"),
        ('{{index .Config.Labels "missing"}}', "<no value>"),
        ("{{(index .Mounts 1).Source}}", "/b"),
        ("{{len .Config.Env}} {{len .ID}} {{len .Config.Labels}}", "2 6 2"),
        ("{{slice .ID 1 3}} {{slice .ID 4}}", "bc 23"),
        ('{{print 1 2 "a" "b" 3}}', "1 2ab3"),
        ("{{println .ID 1}}", "abc123 1\n"),
        ('{{printf "%s is %d, %q, %v" .ID .Count .Names .Empty}}', 'abc123 is 3, "happy_turing", []'),
        (
            '{{printf "%-8s|%8s|%05d|%.2f|%t|%x|%%" .ID .ID .Count .Ratio true 255}}',
            "abc123  |  abc123|00003|0.50|true|ff|%",
        ),
        ('{{printf "%d" .ID}}', "%!d(string=abc123)"),
        ('{{printf "%s"}}', "%!s(MISSING)"),
        ('{{printf "a" 1}}', "a%!(EXTRA int=1)"),
        ('{{eq .ID "abc123"}} {{eq .Count 1 2 3}} {{ne .Count 3}}', "true true false"),
        ("{{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 1 2}}", "true true false false"),
        ('{{and .ID .Text "x"}}|{{or .Text .ID}}|{{not .Text}}', "|abc123|true"),
        ("{{or .ID .Missing}}", "abc123"),
        # pipelines
        ("{{.ID | upper}}", "ABC123"),
        ('{{.ID | upper | printf "%q"}}', '"ABC123"'),
        ("{{.Config | json | len}}", str(len(json.dumps(DATA["Config"], separators=(",", ":"))))),
        # control
        ("{{if .Config.Tty}}tty{{else}}none{{end}}", "none"),
        ("{{if .Text}}a{{else if eq .Count 3}}b{{else}}c{{end}}", "b"),
        ("{{if .Text}}a{{else if .Empty}}b{{else if .Config.User}}c{{else}}d{{end}}", "d"),
        ("{{range .Mounts}}{{.Source}};{{end}}", "/a;/b;"),
        ("{{range $i, $m := .Mounts}}{{$i}}={{$m.Source}} {{end}}", "0=/a 1=/b "),
        ("{{range $k, $v := .Config.Labels}}{{$k}}{{$v}}{{end}}", "a1b2"),
        ("{{range .Empty}}x{{else}}nothing{{end}}", "nothing"),
        ("{{range .Config.User}}x{{else}}nothing{{end}}", "nothing"),
        ("{{range .Mounts}}{{$.ID}}{{end}}", "abc123abc123"),
        ("{{with .Config.Labels}}{{.a}}{{end}}{{with .Text}}x{{else}}y{{end}}", "1y"),
        ("{{$x := .ID}}{{$x}}", "abc123"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ("{{$x := 1}}{{if true}}{{$x := 2}}{{end}}{{$x}}", "1"),
        # white space and comments
        ("a  {{- .Count -}}  b", "a3b"),
        ("a {{/* nothing }} here */}}b", "a b"),
        ("a {{- /* both sides */ -}} b", "ab"),
    ],
)
def test_a_template_renders_as_go_renders_it(template, text):
    assert Template(template).render(DATA) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{foo .ID}}", 'template: :1: function "foo" not defined'),
        ("{{.ID", "template: :1: unclosed action"),
        ('{{"abc}}', "template: :1: unclosed action"),
        ("{{if .ID}}", "template: :1: unexpected EOF"),
        ("{{end}}", "template: :1: unexpected {{end}}"),
        ("{{else}}", "template: :1: unexpected {{else}}"),
        ("{{if .ID}}{{else}}{{else}}{{end}}", "template: :1: unexpected {{else}}"),
        ("{{}}", "template: :1: missing value for command"),
        ("{{if}}x{{end}}", "template: :1: missing value for command"),
        ("{{.ID |}}", "template: :1: missing value for command"),
        ("{{(.ID}}", "template: :1: unclosed left paren"),
        ("{{.ID)}}", "template: :1: unexpected ')' in command"),
        ("{{$x}}", 'template: :1: undefined variable "$x"'),
        ("{{range $v := .Mounts}}{{end}}{{$v}}", 'template: :1: undefined variable "$v"'),
        ("{{.ID | 3}}", "template: :1: non executable command in pipeline"),
        ("{{.ID & 3}}", "template: :1: unexpected '&' in command"),
        ('{{"\\q"}}', 'template: :1: invalid syntax in constant "\\q"'),
        ('{{define "x"}}{{end}}', "template: :1: {{define}} is not supported in --format"),
        ("one\ntwo {{bar}}", 'template: :2: function "bar" not defined'),
    ],
)
def test_a_template_that_can_not_be_read_says_why(template, message):
    with pytest.raises(TemplateError) as caught:
        Template(template)
    assert caught.value.message == "template parsing error: " + message


@pytest.mark.parametrize(
    ("template", "where"),
    [
        ("{{.Nope}}", ':1:2: executing "" at <.Nope>: map has no entry for key "Nope"'),
        ("x\n {{.Config.Nope}}", ':2:3: executing "" at <.Config.Nope>: map has no entry for key "Nope"'),
        ("{{.ID.x}}", ':1:2: executing "" at <.ID.x>: can\'t evaluate field x in type string'),
        (
            "{{.Config.User.x}}",
            ':1:2: executing "" at <.Config.User.x>: nil pointer evaluating interface {}.x',
        ),
        ("{{index .Mounts 2}}", ':1:2: executing "" at <index>: error calling index: index out of range: 2'),
        (
            "{{index .Count 0}}",
            ':1:2: executing "" at <index>: error calling index: can\'t index item of type int',
        ),
        ("{{join .ID}}", ':1:2: executing "" at <join>: wrong number of args for join: want 2 got 1'),
        ("{{upper .Count}}", ':1:2: executing "" at <upper>: wrong type for value; expected string; got int'),
        (
            '{{join .Count ","}}',
            ':1:2: executing "" at <join>: wrong type for value; expected list of strings; got int',
        ),
        ("{{.ID 1}}", ':1:2: executing "" at <.ID>: can\'t give argument to non-function .ID'),
        ("{{range .ID}}{{end}}", ':1:8: executing "" at <.ID>: range can\'t iterate over abc123'),
        ("{{eq .ID .Count}}", ':1:2: executing "" at <eq>: incompatible types for comparison'),
        ("{{len .Count}}", ':1:2: executing "" at <len>: error calling len: len of type int'),
        ("{{slice .ID 4 2}}", ':1:2: executing "" at <slice>: error calling slice: index out of range: 4:2'),
    ],
)
def test_a_template_that_asks_for_what_is_not_there_says_where(template, where):
    with pytest.raises(TemplateError) as caught:
        Template(template).render(DATA)
    assert caught.value.message == "template parsing error: template: " + where


def test_a_wrong_field_names_the_right_ones():
    with pytest.raises(TemplateError) as caught:
        Template("{{.Config.Environment}}").render(DATA)
    assert caught.value.hint == "Fields here: Env, Labels, Tty, User."


def test_typed_tabs_and_newlines_count_in_list_templates_only():
    assert Template("{{.ID}}\\t{{.Count}}\\n", unescape=True).render(DATA) == "abc123\t3\n"
    assert Template("{{.ID}}\\t{{.Count}}").render(DATA) == "abc123\\t3"


def test_functions_leave_headers_alone():
    headers = {"ID": "CONTAINER ID", "Names": "NAMES"}
    template = Template('{{truncate .ID 3}}\t{{.Names | upper}}\t{{json .ID}}\t{{printf "%s!" .ID}}')
    assert template.render_headers(headers) == "CONTAINER ID\tNAMES\tCONTAINER ID\tCONTAINER ID!"


@pytest.mark.parametrize(
    "template", ["{{" + "(" * 3000 + ".ID" + ")" * 3000 + "}}", "{{if true}}" * 3000 + "{{end}}" * 3000]
)
def test_a_template_nested_too_deeply_is_an_error_in_words(template):
    with pytest.raises(TemplateError, match="nested too deeply"):
        Template(template).render(DATA)


def test_a_width_of_printf_is_bounded():
    assert Template('{{printf "%999999999999s" .ID}}').render(DATA).startswith("%!(BADWIDTH)")


PIECES = 'if else end range with ( ) | "a" `b` $x $ := = .ID .Config .Mounts . , 1 0 - /* */ % and or {{ }}'


@given(st.lists(st.sampled_from([*PIECES.split(), *FUNCTIONS, "\\", " "]), max_size=14))
def test_any_template_renders_or_fails_in_words(pieces):
    try:
        text = Template("{{" + "".join(pieces) + "}}").render(DATA)
    except TemplateError:
        return  # every other exception is a traceback to the user
    assert isinstance(text, str)
