"""How many instances: the HorizontalPodAutoscaler's algorithm, simulations of it, and what is wrong with one.

::

    from tenfold.autoscaling.hpa import Hpa, State, reconcile
    from tenfold.autoscaling.proposals import Usage, for_utilization
"""
