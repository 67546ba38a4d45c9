"""Video methods: ALPRO, VATT with gradient harmonization, multigrid schedules."""
