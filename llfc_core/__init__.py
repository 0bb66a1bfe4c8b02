"""Layerwise Linear Feature Connectivity: train, measure and judge pairs of networks."""
