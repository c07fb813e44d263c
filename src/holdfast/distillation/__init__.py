"""Knowledge distillation that resumes exactly."""
