"""Rollouts: how a challenger replaces the champion in shadow and canary steps."""
