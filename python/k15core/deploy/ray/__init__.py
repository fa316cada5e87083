"""Ray places the ranks of a trainer over the nodes of a cluster, and tells when one dies."""

from k15core.deploy.ray.ranks import RayRanks

__all__ = ["RayRanks"]
