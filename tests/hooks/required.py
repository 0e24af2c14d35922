"""Options that a hook cannot be built without, for tests that build every hook."""

REQUIRED = {
    "weight_average": {"decay": 0.9},
    "adapter_gate": {"sigma": 0.5},
    "teacher_velocity": {"teachers": {"ink": "runs/ink"}},
    "adjoint_target": {"rewards": [{"type": "flowhooks.digits.rewards:Ink"}]},
    "ends": {"rewards": [{"type": "flowhooks.digits.rewards:Ink"}]},
    "flow_grpo": {"rewards": [{"type": "flowhooks.digits.rewards:Ink"}]},
}
