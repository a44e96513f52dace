"""Names of TRL, transformers and PEFT, and the keys of a recipe in their place, for hints in errors."""

_EVERY = ", over all micro-batches and processes"
KEYS = {
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.eps",
    "beta": "algorithm.kl_coef",
    "bf16": "model.dtype",
    "dataset_config": "problems.train.config",
    "dataset_name": "problems.train.dataset, with source = 'hub'",
    "dataset_test_split": "problems.evaluation.split",
    "dataset_train_split": "problems.train.split",
    "deepspeed": "distributed.strategy",
    "distillation_add_tail": "algorithm.add_tail",
    "distillation_alpha": "algorithm.beta",
    "distillation_is_clip": "algorithm.importance_sampling_cap",
    "distillation_topk": "algorithm.top_k",
    "eval_dataset": "problems.evaluation, in Python evaluation_problems",
    "eval_strategy": "training.eval_steps",
    "fsdp": "distributed.strategy",
    "generation_batch_size": f"training.rollouts_per_step{_EVERY}",
    "gradient_accumulation_steps": f"training.rollouts_per_step{_EVERY}",
    "learning_rate": "optimizer.lr",
    "lora_r": "lora.r",
    "lora_target_modules": "lora.target_modules",
    "loss_type": "algorithm.loss_agg_mode",
    "max_completion_length": "sampling.max_new_tokens",
    "max_reprompt_len": "teacher.max_length, completion included",
    "model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "num_generations_eval": "evaluation.num_samples",
    "num_train_epochs": "training.max_steps, in optimizer steps",
    "peft_config": "lora",
    "per_device_eval_batch_size": "sampler.max_num_seqs",
    "per_device_train_batch_size": "training.micro_batch_size",
    "reprompt_template": "context.template",
    "reward_funcs": "grader",
    "run_name": "name",
    "save_strategy": "training.save_steps",
    "seq_kd": "algorithm.kind = 'seq-kd'",
    "teacher_model_kind": "teacher.kind",
    "teacher_model_name_or_path": "teacher.model.name_or_path",
    "teacher_prompt_template": "context.template",
    "teacher_sync_steps": "teacher.sync_steps",
    "teacher_update_rate": "teacher.update_rate",
    "torch_dtype": "model.dtype",
    "train_dataset": "problems.train, in Python problems",
    "use_vllm": "sampler.kind = 'vllm'",
    "vllm_enable_sleep_mode": "sampler.enable_sleep_mode",
    "vllm_gpu_memory_utilization": "sampler.gpu_memory_utilization",
    "vllm_max_model_length": "sampler.max_model_len",
    "vllm_mode": "sampler.kind = 'vllm' or 'vllm-server'",
    "vllm_server_base_url": "sampler.base_url",
}
"""The key for each name, with a remark where it counts something else."""
WORDS = {
    "args": "its fields are keys of a recipe: Recipe(lr=1e-5, …)",
    "callbacks": "they are an argument of `stepalign.train`",
    "fp16": "training has no loss scale: model.dtype = 'bfloat16' or 'float32'",
    "hub_model_id": "`stepalign push` uploads a run",
    "logging_steps": "every step is logged",
    "processing_class": "the tokenizer is the model's own",
    "push_to_hub": "`stepalign push` uploads a run",
    "resume_from_checkpoint": "the same call resumes a run where it stopped",
    "tokenizer": "the tokenizer is the model's own",
}
"""Names without a key in a recipe, and the reason."""


def hint(name: str) -> str:
    """Return what a recipe has in place of a name; empty for a name that is none of TRL's."""
    here = f"it is {KEYS[name]}" if name in KEYS else WORDS.get(name, "")
    return f"TRL's name; here {here}" if here else ""
