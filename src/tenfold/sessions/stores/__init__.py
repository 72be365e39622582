"""Session stores: memory, Redis, SQL, and the contract that each of them passes."""
