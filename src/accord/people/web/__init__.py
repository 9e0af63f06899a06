"""The pages that people see, and the doors for programs, over one desk."""
