"""`kill -9` at fifty random moments while saving: the old or the new file is there, whole, each time.

python -m pytest -m stress tests/stress
"""

import pytest
from kills import KINDS, kill_saves

pytestmark = pytest.mark.stress


@pytest.mark.parametrize("name", KINDS)
def test_fifty_kills_leave_the_old_or_the_new_file(tmp_path, name):
    left = kill_saves(name, tmp_path, kills=50)
    print(
        f"{left.count(0)} and {left.count(1)} of the two states, {len(list(tmp_path.glob('.*.tmp')))} unfinished files"
    )
    assert set(left) == {0, 1}  # never neither
    assert list(tmp_path.glob(".*.tmp")), "no kill came in the middle of a write"
    KINDS[name].saver(tmp_path, 1)()
    assert KINDS[name].loaded(tmp_path) == 1
