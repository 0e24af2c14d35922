"""The papers behind the hooks, for the model card's citation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def _preprint(key: str, *, title: str, author: str, year: int, arxiv: str) -> str:
    """The BibTeX entry of a paper on arXiv."""
    return f"""@misc{{{key},
  title         = {{{title}}},
  author        = {{{author}}},
  year          = {{{year}}},
  eprint        = {{{arxiv}}},
  archivePrefix = {{arXiv}}
}}"""


FLOW_DPO = _preprint(
    "liu2025improving",
    title="Improving Video Generation with Human Feedback",
    author="Jie Liu and Gongye Liu and Jiajun Liang and others",
    year=2025,
    arxiv="2501.13918",
)
DIFFUSION_DPO = _preprint(
    "wallace2023diffusion",
    title="Diffusion Model Alignment Using Direct Preference Optimization",
    author="Bram Wallace and Meihua Dang and Rafael Rafailov and others",
    year=2023,
    arxiv="2311.12908",
)
ANYFLOW = _preprint(
    "gu2026anyflow",
    title="AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation",
    author="Yuchao Gu and Guian Fang and others",
    year=2026,
    arxiv="2605.13724",
)
MEAN_FLOW = _preprint(
    "geng2025mean",
    title="Mean Flows for One-step Generative Modeling",
    author="Zhengyang Geng and Mingyang Deng and Xingjian Bai and others",
    year=2025,
    arxiv="2505.13447",
)
SHORTCUT = _preprint(
    "frans2024one",
    title="One Step Diffusion via Shortcut Models",
    author="Kevin Frans and Danijar Hafner and Sergey Levine and Pieter Abbeel",
    year=2024,
    arxiv="2410.12557",
)
DMD = _preprint(
    "yin2023one",
    title="One-step Diffusion with Distribution Matching Distillation",
    author='Tianwei Yin and Micha{\\"e}l Gharbi and Richard Zhang and others',
    year=2023,
    arxiv="2311.18828",
)
DMD2 = _preprint(
    "yin2024improved",
    title="Improved Distribution Matching Distillation for Fast Image Synthesis",
    author='Tianwei Yin and Micha{\\"e}l Gharbi and Taesung Park and others',
    year=2024,
    arxiv="2405.14867",
)
REPA = _preprint(
    "yu2024representation",
    title="Representation Alignment for Generation: Training Diffusion Transformers Is Easier Than You Think",
    author="Sihyun Yu and Sangkyung Kwak and others",
    year=2024,
    arxiv="2410.06940",
)
CREPA = _preprint(
    "hwang2025cross",
    title="Cross-Frame Representation Alignment for Fine-Tuning Video Diffusion Models",
    author="Sungwon Hwang and Hyojin Jang and Kinam Kim and Minho Park and Jaegul Choo",
    year=2025,
    arxiv="2506.09229",
)
LAYER_SYNC = _preprint(
    "haghighi2025layersync",
    title="LayerSync: Self-aligning Intermediate Layers",
    author="Yasaman Haghighi and Bastien van Delft and Mariam Hassan and Alexandre Alahi",
    year=2025,
    arxiv="2510.12581",
)
SELF_FLOW = _preprint(
    "chefer2026self",
    title="Self-Supervised Flow Matching for Scalable Multi-Modal Synthesis",
    author="Hila Chefer and Patrick Esser and Dominik Lorenz and Dustin Podell and others",
    year=2026,
    arxiv="2603.06507",
)
TWIN_FLOW = _preprint(
    "cheng2025twinflow",
    title="TwinFlow: Realizing One-step Generation on Large Models with Self-adversarial Flows",
    author="Zhenglin Cheng and Peng Sun and Jianguo Li and Tao Lin",
    year=2025,
    arxiv="2512.05150",
)
FLOW_OPD = _preprint(
    "fang2026flowopd",
    title="Flow-OPD: On-Policy Distillation for Flow Matching Models",
    author="Zhen Fang and Wenxuan Huang and Yu Zeng and Yiming Zhao and others",
    year=2026,
    arxiv="2605.08063",
)
FLOW_GRPO = _preprint(
    "liu2025flowgrpo",
    title="Flow-GRPO: Training Flow Matching Models via Online RL",
    author="Jie Liu and Gongye Liu and Jiajun Liang and others",
    year=2025,
    arxiv="2505.05470",
)
DIFFUSION_OPD = _preprint(
    "li2026diffusionopd",
    title="DiffusionOPD: A Unified Perspective of On-Policy Distillation in Diffusion Models",
    author="Quanhao Li and Junqiu Yu and Kaixun Jiang and Yujie Wei and others",
    year=2026,
    arxiv="2605.15055",
)
FLOW_CPS = _preprint(
    "wang2025coefficients",
    title="Coefficients-Preserving Sampling for Reinforcement Learning with Flow Matching",
    author="Feng Wang and Zihao Yu",
    year=2025,
    arxiv="2509.05952",
)
CLIP_SCORE = _preprint(
    "hessel2021clipscore",
    title="CLIPScore: A Reference-free Evaluation Metric for Image Captioning",
    author="Jack Hessel and Ari Holtzman and Maxwell Forbes and Ronan Le Bras and Yejin Choi",
    year=2021,
    arxiv="2104.08718",
)
SIGLIP = _preprint(
    "zhai2023sigmoid",
    title="Sigmoid Loss for Language Image Pre-Training",
    author="Xiaohua Zhai and Basil Mustafa and Alexander Kolesnikov and Lucas Beyer",
    year=2023,
    arxiv="2303.15343",
)
PICK_SCORE = _preprint(
    "kirstain2023pick",
    title="Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation",
    author="Yuval Kirstain and Adam Polyak and Uriel Singer and others",
    year=2023,
    arxiv="2305.01569",
)
TROCR = _preprint(
    "li2021trocr",
    title="TrOCR: Transformer-based Optical Character Recognition with Pre-trained Models",
    author="Minghao Li and Tengchao Lv and Jingye Chen and others",
    year=2021,
    arxiv="2109.10282",
)
ADJOINT_CONTROL = _preprint(
    "guo2026improved",
    title="Improved techniques for fine-tuning flow models via adjoint matching: a deterministic control pipeline",
    author="Zhengyi Guo and Jiayuan Sheng and David D. Yao and Wenpin Tang",
    year=2026,
    arxiv="2605.06583",
)
ADJOINT_MATCHING = _preprint(
    "domingoenrich2024adjoint",
    title="Adjoint Matching: Fine-tuning Flow and Diffusion Generative Models with Memoryless Stochastic Optimal "
    "Control",
    author="Carles Domingo-Enrich and Michal Drozdzal and Brian Karrer and Ricky T. Q. Chen",
    year=2024,
    arxiv="2409.08861",
)

#: Type of a hook -> what it is built on.
PAPERS: Mapping[str, tuple[str, ...]] = {
    "flow_dpo": (FLOW_DPO, DIFFUSION_DPO),
    "target_replacer": (ANYFLOW, MEAN_FLOW, SHORTCUT),
    "distribution_matching": (ANYFLOW, DMD, DMD2),
    "dual_times": (SELF_FLOW,),
    "on_policy_rollout": (FLOW_GRPO, FLOW_CPS),
    "teacher_velocity": (FLOW_OPD, DIFFUSION_OPD),
    "flow_grpo": (FLOW_GRPO,),
    "adjoint_target": (ADJOINT_CONTROL, ADJOINT_MATCHING),
    "twin_flow_target": (TWIN_FLOW,),
    "twin_flow": (TWIN_FLOW,),
    "feature_alignment": (REPA, CREPA, LAYER_SYNC),
}
#: Type of a reward -> the same.
REWARD_PAPERS: Mapping[str, tuple[str, ...]] = {
    "clip_score": (CLIP_SCORE, SIGLIP),
    "pickscore": (PICK_SCORE,),
    "ocr": (TROCR,),
}


def cited(hooks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The papers behind hook blocks and the rewards in them, each once."""
    types = [PAPERS.get(hook["type"], ()) for hook in hooks]
    rewards = [REWARD_PAPERS.get(block["type"], ()) for hook in hooks for block in hook.get("rewards", ())]
    return list(dict.fromkeys(paper for papers in (*types, *rewards) for paper in papers))
