"""Figures of merit: functions of arrays."""
