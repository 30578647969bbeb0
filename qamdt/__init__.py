"""Quality-aware masked diffusion transformer for text-to-music generation (QA-MDT).

This package imports nothing of its own here, so that `import qamdt` is instant. Every name has one home:

    from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
    from qamdt.quality import QualityStats
"""

__version__ = "0.1.0"
