from pyrun.cli.table import aligned


def test_the_columns_are_those_of_docker_images():
    table = aligned([["REPOSITORY", "TAG", "SIZE"], ["redis", "latest", "109MB"], ["b", "1", "4.21kB"]])
    assert table == (
        "REPOSITORY   TAG       SIZE\nredis        latest    109MB\nb            1         4.21kB\n"
    )


def test_a_cell_is_at_least_ten_wide_and_three_apart():
    assert aligned([["A", "B"]]) == "A         B\n"
    assert aligned([["1234567", "B"]]) == "1234567   B\n"
    assert aligned([["12345678", "B"]]) == "12345678   B\n"


def test_the_last_cell_is_not_padded():
    assert aligned([["A", "B"], ["x", "longer than that"]]).splitlines()[0] == "A         B"


def test_an_empty_cell_keeps_its_column():
    assert aligned([["A", "", "C"]]) == "A                   C\n"


def test_rows_may_differ_in_length():
    assert aligned([["A", "B", "C"], ["x"], []]) == "A         B         C\nx\n\n"


def test_no_rows_are_no_text():
    assert aligned([]) == ""
