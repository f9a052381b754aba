"""Stacks: several members as one program, with stacked models, optimizers, schedules and data."""
