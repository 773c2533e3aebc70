"""Two or three commands to copy for each help page, one per line."""

EXAMPLES = {
    "plan": """
        kdpipe plan --teacher Qwen/Qwen3-8B --data corpus.jsonl --targets topk
        kdpipe plan --teacher Qwen/Qwen3-8B --tokens 100000000
    """,
    "cache-teacher": """
        kdpipe cache-teacher --teacher Qwen/Qwen3-8B --data corpus.jsonl --out cache
        kdpipe cache-teacher --teacher model --data chats.jsonl --out cache --dry-run
        kdpipe cache-teacher --config capture.yaml --devices all
    """,
    "train": """
        kdpipe train --from-cache cache --student 100m --out runs/a
        kdpipe train --from-cache cache --student model --out runs/b --lr 1e-5 --lora
        kdpipe train --config train.yaml --dry-run
    """,
    "eval": """
        kdpipe eval --from-cache cache --student runs/a
        kdpipe eval --from-cache cache --student runs/a --tasks hellaswag --limit 100
    """,
    "compare": """
        kdpipe compare runs/a runs/b
        kdpipe compare runs/a student --teacher --format md
    """,
    "sample": """
        kdpipe sample runs/a
        kdpipe sample runs/a --prompt "Once upon a time" --beside Qwen/Qwen3-8B
    """,
    "chat": """
        kdpipe chat runs/a
        kdpipe chat Qwen/Qwen3-0.6B --system "Answer in one sentence." --greedy
    """,
    "export": """
        kdpipe export runs/a --to hf --out student
        kdpipe export runs/a --to hf --out student --dtype bfloat16
    """,
    "demo": """
        kdpipe demo
        kdpipe demo --out runs/demo --steps 100 --devices cpu
    """,
    "doctor": """
        kdpipe doctor --out runs
        kdpipe doctor --from-cache cache --teacher Qwen/Qwen3-8B --student 100m
        kdpipe doctor runs/a
    """,
    "cache copy": """
        kdpipe cache copy s3://bucket/cache cache
        kdpipe cache copy cache sample --parts 0:2
    """,
    "cache export": """
        kdpipe cache export cache --to parquet --out tables
        kdpipe cache export cache --to parquet --out tables --split validation
    """,
    "cache import": """
        kdpipe cache import logprobs --from topk --tokenizer Qwen/Qwen3-8B --out cache
        kdpipe cache import data --from axolotl --tokenizer model --out cache
    """,
    "cache inspect": """
        kdpipe cache inspect cache
        kdpipe cache inspect s3://bucket/cache --json
    """,
    "cache merge": """
        kdpipe cache merge cache-a cache-b --out merged
        kdpipe cache merge cache-a cache-b --out merged --overlap keep-first
    """,
    "cache requantize": """
        kdpipe cache requantize cache --out lean --profile lean
        kdpipe cache requantize cache --out small --targets topk --top-k 16
    """,
    "cache sign": """
        kdpipe cache sign --new-key team
        kdpipe cache sign cache --key team
    """,
    "cache subset": """
        kdpipe cache subset cache --out english --where language=en
        kdpipe cache subset cache --out hard --by teacher-entropy --highest 0.1
    """,
    "cache verify": """
        kdpipe cache verify cache
        kdpipe cache verify cache --level deep --against Qwen/Qwen3-8B
        kdpipe cache verify copy --repair-from s3://bucket/cache
    """,
    "config init": """
        kdpipe config init > train.yaml
        kdpipe config init --for cache-teacher > capture.yaml
    """,
    "config show": """
        kdpipe config show train.yaml
        kdpipe config show train.yaml --set run.batch_size=16
    """,
    "config check": """
        kdpipe config check train.yaml
        kdpipe config check capture.yaml --for cache-teacher
    """,
    "config schema": """
        kdpipe config schema > train.schema.json
        kdpipe config schema --for cache-teacher > capture.schema.json
    """,
}
