"""Shipper: the process that uploads journals to MLflow. No module outside this package imports mlflow."""
