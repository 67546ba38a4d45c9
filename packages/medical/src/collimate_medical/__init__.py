"""Medical methods: MoRE on X-rays, ECGs and reports."""
