"""Lists of devices as spreadsheets write them, and every way in which one can be wrong."""

from __future__ import annotations

import pytest

from edgefleet_provisioning import device_csv
from edgefleet_provisioning.commands.arguments import labels
from edgefleet_shared.errors import InvalidInputError


def read(text: str):
    """Return what a file says."""
    return device_csv.read(text, "generic-x86_64", labels)


def test_a_list_is_read_as_it_stands():
    """Any order of columns, quoted cells, both line ends, labels with ; between."""
    found = read('hardware,id,labels\r\nrpi5,cam-1,"site=berlin; line=4"\r\n,cam-2,\r\n')
    assert [line.body for line in found] == [
        {"id": "cam-1", "hardware": "rpi5", "labels": {"site": "berlin", "line": "4"}},
        {"id": "cam-2", "hardware": "generic-x86_64", "labels": {}},
    ]
    assert [line.number for line in found] == [2, 3]
    assert read("id\ncam-1\n")[0].body["id"] == "cam-1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1"),
        ("id\n", "0 devices"),
        ("name,hardware\ncam-1,x\n", "columns are not known"),
        ("id,extra\ncam-1,x\n", "columns are not known"),
        ("id,labels\ncam-1,site=a\n../x,\n", "line 3, column id"),
        ("id,labels\ncam-1,site\n", "line 2, column labels"),
        ("id,labels\ncam-1,a=b,c\n", "line 2: it has more or fewer cells"),
        ("id,labels\ncam-1\n", "line 2: it has more or fewer cells"),
        ('id\n"cam-1\n', "line"),
    ],
)
def test_what_is_wrong_has_its_line_and_column(text, words):
    """The first line is 1, as editors count; nothing is registered."""
    with pytest.raises(InvalidInputError) as caught:
        read(text)
    assert caught.value.code == "bad_csv"
    assert words in caught.value.message


def test_many_problems_are_cut_short():
    """Twenty are told, the others counted."""
    with pytest.raises(InvalidInputError) as caught:
        read("id\n" + "A\n" * 30)
    assert "line 21" in caught.value.message
    assert "and 10 more" in caught.value.message


def test_what_the_server_finds_is_shown_by_line():
    """A place in the list becomes the line of the file."""
    lines = read("id\n\ncam-1\ncam-2\n")
    error = device_csv.place(lines, [{"place": 1, "field": "id", "message": "It is taken."}])
    assert "line 4, column id: It is taken" in error.message
