from pipelines.pipeline_qamdt import QAMDTPipeline as QAMDTPipeline
from whisq.scorer import WhisQScorer as WhisQScorer

__version__: str
