"""What a run will cost, before it is begun: memory, time a step, what bounds it, and what would help.

Training steps of a few samples are really run, on the CPU, and counted operation by operation (`counting`); counts
grow with the batch as polynomials, which are fitted; a roofline of the machine (`machines`; of this one, measured,
`here`) turns them into seconds (`prediction`). `collimate <app> plan` is the command.
"""

from collimate.planning.counting import Count, StepCount, count_step
from collimate.planning.here import measure_this_machine
from collimate.planning.machines import MACHINES, Machine
from collimate.planning.prediction import Prediction, predict

__all__ = [
    "MACHINES",
    "Count",
    "Machine",
    "Prediction",
    "StepCount",
    "count_step",
    "measure_this_machine",
    "predict",
]
