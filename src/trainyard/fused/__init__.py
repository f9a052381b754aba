"""Several members as one program: their models, optimizers, schedules and data, stacked."""
