"""All that does not fit a pipeline of sound is told at once."""

from __future__ import annotations

import pytest

from flowhooks.checks.sound import Heard, _misfits
from flowhooks.data.waveforms import Waveform

PIPELINE = Heard(pipeline="P", rate=800, hop=8, channels=1)


@pytest.mark.parametrize(
    ("rate", "samples", "channels", "keys"),
    [
        (800, 160, 1, []),
        (1600, 320, 1, ["sample_rate"]),
        (800, 162, 1, ["duration"]),
        (1600, 324, 2, ["sample_rate", "duration", "channels"]),
    ],
)
def test_a_wrong_rate_hides_no_other_fault(rate, samples, channels, keys):
    wave = Waveform(stored_rate=rate, stored_channels=channels, stored_samples=999, rate=rate, channels=channels)
    found = dict(_misfits(PIPELINE, wave, samples, 0.2))
    assert list(found) == keys
    if "duration" in found:
        assert "0.2025 s are 162 samples" in found["duration"] and "set it to 0.2" in found["duration"]
