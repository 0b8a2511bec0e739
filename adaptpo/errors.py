"""Errors that a user can fix. The command line prints their message without a traceback and exits with status 2."""


class AdaptpoError(Exception):
    """An error that the user can fix; the message states what was found and names the remedy."""


class ConfigError(AdaptpoError):
    """A recipe or an argument is wrong."""


class DataError(AdaptpoError):
    """A data set cannot be read, or none of its rows is left."""


class ModelError(AdaptpoError):
    """A model or tokenizer cannot do what the run needs."""


class AnnotationError(AdaptpoError):
    """A reward function or reward model failed or returned something unusable."""


class GenerationError(AdaptpoError):
    """A generation server failed, or does not answer as the policy in training would."""


class RunError(AdaptpoError):
    """A run directory cannot be used: it belongs to another run, is locked, or its inputs changed."""


class OtherRunError(RunError):
    """A run directory holds a run with other settings or inputs."""


class MachineError(RunError):
    """Memory, accelerator, descriptors or disk failed; the run can be resumed once they are there again."""


class TrainingError(AdaptpoError):
    """Training cannot continue (for instance, a loss is not finite)."""
