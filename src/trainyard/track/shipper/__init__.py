"""The process that carries journals to MLflow; nothing outside this package imports mlflow."""
