"""Shipper: the process that uploads journals to MLflow; nothing outside this package imports mlflow."""
