"""The papers behind the hooks, for the model card's citation."""

from __future__ import annotations

from collections.abc import Mapping

FLOW_DPO = """@misc{liu2025improving,
  title         = {Improving Video Generation with Human Feedback},
  author        = {Jie Liu and Gongye Liu and Jiajun Liang and others},
  year          = {2025},
  eprint        = {2501.13918},
  archivePrefix = {arXiv}
}"""
DIFFUSION_DPO = """@misc{wallace2023diffusion,
  title         = {Diffusion Model Alignment Using Direct Preference Optimization},
  author        = {Bram Wallace and Meihua Dang and Rafael Rafailov and others},
  year          = {2023},
  eprint        = {2311.12908},
  archivePrefix = {arXiv}
}"""
ANYFLOW = """@misc{gu2026anyflow,
  title         = {AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation},
  author        = {Yuchao Gu and Guian Fang and others},
  year          = {2026},
  eprint        = {2605.13724},
  archivePrefix = {arXiv}
}"""
MEAN_FLOW = """@misc{geng2025mean,
  title         = {Mean Flows for One-step Generative Modeling},
  author        = {Zhengyang Geng and Mingyang Deng and Xingjian Bai and others},
  year          = {2025},
  eprint        = {2505.13447},
  archivePrefix = {arXiv}
}"""
REPA = """@misc{yu2024representation,
  title         = {Representation Alignment for Generation: Training Diffusion Transformers Is Easier Than You Think},
  author        = {Sihyun Yu and Sangkyung Kwak and others},
  year          = {2024},
  eprint        = {2410.06940},
  archivePrefix = {arXiv}
}"""
CREPA = """@misc{hwang2025cross,
  title         = {Cross-Frame Representation Alignment for Fine-Tuning Video Diffusion Models},
  author        = {Sungwon Hwang and Hyojin Jang and Kinam Kim and Minho Park and Jaegul Choo},
  year          = {2025},
  eprint        = {2506.09229},
  archivePrefix = {arXiv}
}"""
LAYER_SYNC = """@misc{haghighi2025layersync,
  title         = {LayerSync: Self-aligning Intermediate Layers},
  author        = {Yasaman Haghighi and Bastien van Delft and Mariam Hassan and Alexandre Alahi},
  year          = {2025},
  eprint        = {2510.12581},
  archivePrefix = {arXiv}
}"""
TWIN_FLOW = """@misc{cheng2025twinflow,
  title         = {TwinFlow: Realizing One-step Generation on Large Models with Self-adversarial Flows},
  author        = {Zhenglin Cheng and Peng Sun and Jianguo Li and Tao Lin},
  year          = {2025},
  eprint        = {2512.05150},
  archivePrefix = {arXiv}
}"""

PAPERS: Mapping[str, tuple[str, ...]] = {
    "flow_dpo": (FLOW_DPO, DIFFUSION_DPO),
    "target_replacer": (ANYFLOW, MEAN_FLOW),
    "twin_flow_target": (TWIN_FLOW,),
    "twin_flow": (TWIN_FLOW,),
    "feature_alignment": (REPA, CREPA, LAYER_SYNC),
}
