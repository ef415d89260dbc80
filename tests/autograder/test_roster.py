"""The roster: what spreadsheets write is read, and what cannot be is one sentence with its line."""

import pytest
from nbgrader.api import Student

from autograder.gradebook import open_gradebook
from autograder.roster import RosterError, import_roster, read_roster

ADA = {
    "first_name": "Ada",
    "last_name": "Lovelace",
    "email": "ada@example.org",
    "lms_user_id": "1815",
}
HEADER = "id,first_name,last_name,email,lms_user_id\n"
ROW = "ada,Ada,Lovelace,ada@example.org,1815\n"


@pytest.fixture
def file(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "students.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_write_is_read(encoding, separator, end, file):
    text = (HEADER + ROW + "\n" + "zoë,Zoë\n").replace(",", separator).replace("\n", end)
    found = read_roster(file(text, encoding))
    assert found.students == {
        "ada": ADA,
        "zoë": {"first_name": "Zoë", "last_name": None, "email": None, "lms_user_id": None},
    }
    assert found.ignored == () and found.repeated == 0


def test_columns_come_in_any_order_and_writing(file):
    text = ' Last Name ,ID,group,E-Mail,FIRST-NAME\n"Lovelace, Lady", ada ,A,ada@example.org,Ada\n'
    found = read_roster(file(text))
    assert found.students == {
        "ada": {"first_name": "Ada", "last_name": "Lovelace, Lady", "email": "ada@example.org"}
    }
    assert found.ignored == ("group",)


def test_the_same_line_twice_is_told_and_counts_once(file):
    found = read_roster(file(HEADER + ROW + ROW))
    assert found.students == {"ada": ADA} and found.repeated == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty: its first line names the columns"),
        (b"\n\n", "is empty: its first line names the columns"),
        (b"name,email\nada,x\n", r"has no column id; its first line reads: name, email\."),
        (b"id,id\nada,bob\n", "has 2 columns id: leave one"),
        (b"id\nada\n\xe9ve\n", r"line 3: this is not UTF-8 text; save it as \"CSV UTF-8\""),
        (b"\xff\xfei\x00d\x00\n", "this is not UTF-16 text"),
        (b"id,email\nada,a,b\n", "line 2: 3 cells under 2 columns"),
        (b"id,email\n,a@x\n", "line 2: the id is empty"),
        (b'id,email\n"ada,a@x\n', r"line \d: unexpected end of data"),
        (b"id,email\nada,a@x\nada,b@x\n", "line 3: ada is there already, in line 2, with other"),
        (b"id\n=1+1\n", r"line 2: the student id '=1\+1' holds '='\."),
        (b"id\n../eve\n", r"line 2: the student id '../eve' holds '/'\."),
        (b"id,email\nada," + b"x" * 200 + b"\n", "line 2: the email is longer than 128"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text, said, file):
    with pytest.raises(RosterError, match=said) as error:
        read_roster(file(text))
    assert str(error.value).isprintable() and "Traceback" not in str(error.value)


def test_names_are_one_line_of_text(file):
    found = read_roster(file('id,first_name\nada,"A\x1b[2Jda\nLady\u202e"\n'))
    assert found.students["ada"]["first_name"] == "A�[2Jda Lady�"


def test_the_gradebook_takes_new_students_and_changes_known_ones(file, tmp_path):
    with open_gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as gradebook:
        gradebook.add_student("gone", email="stays@example.org")
        gradebook.add_student("ada", first_name="Augusta")
        more = "".join(f"student{i},S,{i},,\n" for i in range(50))
        roster = read_roster(file(HEADER + ROW + more))
        assert import_roster(gradebook, roster) == (50, 1)
        assert import_roster(gradebook, roster) == (0, 0)
        ada = gradebook.db.get(Student, "ada")
        assert {name: getattr(ada, name) for name in ADA} == ADA
        assert len(gradebook.students) == 52

        only_email = read_roster(file("id,email\nada,\n"))
        assert import_roster(gradebook, only_email) == (0, 1)
        assert (ada.email, ada.last_name) == (None, "Lovelace")
