"""One training engine for tokenizers of any modality: what a step is, and what has to be kept to go on from it.

A job gives it a :class:`~tokkit.training.engine.task.Task` (the network, its losses, its batches), and calls
:meth:`~tokkit.training.engine.engine.Engine.step` until it is done. Files, clocks and progress are the job's.
"""

from tokkit.training.engine.averaging import AveragedWeights
from tokkit.training.engine.engine import DivergedError, Engine, Optimisation, Step
from tokkit.training.engine.randomness import seed_of, seeded
from tokkit.training.engine.task import Outcome, Phase, Phases, Task
from tokkit.training.engine.world import World

__all__ = [
    "AveragedWeights",
    "DivergedError",
    "Engine",
    "Optimisation",
    "Outcome",
    "Phase",
    "Phases",
    "Step",
    "Task",
    "World",
    "seed_of",
    "seeded",
]
