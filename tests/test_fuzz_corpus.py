"""What fuzzing has found worth keeping, once more."""

import pytest
from fuzz import TARGETS, Harness, kept

pytestmark = [pytest.mark.any_payload, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_of_the_fuzzer_are_no_findings(name, tmp_path):
    make_target, make_seeds = TARGETS[name]
    harness, inputs = Harness(make_target(), tmp_path), [*make_seeds(), *kept(name)]
    for data in inputs:
        harness.run(data)
    assert harness.runs == len(inputs) > 10 and not harness.known
