"""The tree gives the results that it gave: to the bit on the machine that wrote them, else within a tolerance."""

from __future__ import annotations

import pytest
import torch

from tests.golden import digits, laws, record

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning")]
WRITTEN = {name: record.read(name) for name in ("laws", "digits")}


def check(name: str, case: str, result: dict) -> None:
    exact = WRITTEN[name]["machine"] == record.machine()
    assert record.differences(WRITTEN[name]["results"][case], result, exact) == []


@pytest.mark.parametrize("case", laws.CASES)
def test_two_steps_of_a_recipe_are_as_written(case):
    check("laws", case, laws.result(case))


@pytest.mark.slow
def test_two_steps_of_every_method_on_the_digits_are_as_written(tmp_path):
    digits.prepare(tmp_path)
    for case in digits.CASES:
        check("digits", case, digits.result(case, tmp_path))


def test_nothing_is_written_that_no_case_makes():
    assert WRITTEN["laws"]["results"].keys() == laws.CASES.keys()
    assert WRITTEN["digits"]["results"].keys() == digits.CASES.keys()


def test_one_bit_of_one_weight_is_a_difference():
    weight = torch.arange(6.0).reshape(2, 3)
    other = weight.clone()
    other[1, 2] = torch.nextafter(other[1, 2], torch.tensor(9.0))
    one, two = record.fingerprint({"a": weight}), record.fingerprint({"a": other})
    assert record.differences(one, two, exact=True) != []
    assert record.differences(one, two, exact=False) == []
    assert record.differences(one, record.fingerprint({"a": 2 * weight}), exact=False) != []
    assert record.differences(one, record.fingerprint({"b": weight}), exact=True) != []
    assert record.differences({"x": [1.0]}, {"x": [1.0, 2.0]}, exact=False) != []
    assert record.differences({"x": 1.0}, {"y": 1.0}, exact=False) == ["$.x: only written", "$.y: only found"]
