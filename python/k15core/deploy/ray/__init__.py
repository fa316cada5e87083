"""Ray places the ranks of a trainer and its engines over the nodes of a cluster."""

from k15core.deploy.ray.ranks import RayRanks
from k15core.deploy.ray.sidecars import RaySidecars

__all__ = ["RayRanks", "RaySidecars"]
