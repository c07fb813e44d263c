"""Communication between the processes of a run.

`torchrun` starts several processes and gives each its rank. All of them take the same decisions (when to stop, where
to resume, whether a save has succeeded), and every wait has a time limit.
"""

from crashproof.pytorch.ranks.distributed import DistributedRanks
from crashproof.pytorch.ranks.joining import join_ranks
from crashproof.pytorch.ranks.protocol import Ranks
from crashproof.pytorch.ranks.single import SingleRank

__all__ = ["DistributedRanks", "Ranks", "SingleRank", "join_ranks"]
