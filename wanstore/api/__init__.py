"""What users call. Each function puts the folders beside this one together; `wanstore` has all of them."""
