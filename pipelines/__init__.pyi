from pipelines.pipeline_qamdt import QAMDTPipeline as QAMDTPipeline
from pipelines.request import GenerationRequest as GenerationRequest
