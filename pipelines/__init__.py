"""The jobs: one file a job, the engines that run them, and the ledger that makes them resumable."""
