"""Serve and supervise: the main job, the server with its workers, child processes, deployments."""
