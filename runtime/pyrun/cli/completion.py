"""``pyrun completion``: the scripts that teach a shell what pyrun takes.

They know nothing themselves: each asks ``pyrun __complete``, so a new command needs no new script.
"""

from __future__ import annotations

from typing import Annotated

import click
import typer

from .complete import SHELLS
from .output import write

_BASH = """\
# bash completion for pyrun. Use it now:   source <(pyrun completion bash)
# In every shell:   pyrun completion bash > /etc/bash_completion.d/pyrun
_pyrun() {
    local type value help
    COMPREPLY=()
    while IFS=$'\\t' read -r type value help; do
        case $type in
            file) compopt -o default; COMPREPLY=(); return ;;
            dir) compopt -o dirnames; COMPREPLY=(); return ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <("${COMP_WORDS[0]}" __complete bash "$COMP_WORDBREAKS" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    # "--env=" and the like are to go on where they end.
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    return 0
}
complete -F _pyrun pyrun
"""

_ZSH = """\
#compdef pyrun
# zsh completion for pyrun. Use it now:   source <(pyrun completion zsh)
# In every shell:   pyrun completion zsh > "${fpath[1]}/_pyrun"
_pyrun() {
    local type value help
    local -a described
    while IFS=$'\\t' read -r type value help; do
        case $type in
            file) _files; return ;;
            dir) _files -/; return ;;
            plain) described+=("${value//:/\\\\:}${help:+:$help}") ;;
        esac
    done < <("${words[1]}" __complete zsh "${(@)words[2,CURRENT]}" 2>/dev/null)
    (( ${#described} )) && _describe 'pyrun' described
}
if [[ ${funcstack[1]} == _pyrun ]]; then
    _pyrun "$@"
else
    compdef _pyrun pyrun
fi
"""

_FISH = """\
# fish completion for pyrun. Use it now:   pyrun completion fish | source
# In every shell:   pyrun completion fish > ~/.config/fish/completions/pyrun.fish
function __pyrun_complete
    set -l words (commandline -opc) (commandline -ct)
    $words[1] __complete fish $words[2..-1] 2>/dev/null | while read -l -d \\t type value help
        switch $type
            case file
                __fish_complete_path (commandline -ct)
            case dir
                __fish_complete_directories (commandline -ct)
            case plain
                printf '%s\\t%s\\n' $value $help
        end
    end
end
complete -c pyrun -f -a '(__pyrun_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(
    shell: Annotated[str, typer.Argument(metavar="|".join(SHELLS), click_type=click.Choice(SHELLS))],
) -> None:
    """Print the completion script for a shell"""
    write(SCRIPTS[shell])
