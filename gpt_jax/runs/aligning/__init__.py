"""What `sft`, `reward`, `dpo`, `ppo`, `grpo` and `collect` are made of: each opens or makes one thing for them."""
