import json, time
def test_x(make_recipe, tiny_qwen3):
    from stepalign.training.loop import train
    t=time.perf_counter()
    settings = make_recipe()
    print(train(settings), time.perf_counter()-t)
    for p in sorted(settings.folder.rglob("*")): print(p.relative_to(settings.folder), p.stat().st_size)
    print((settings.folder/"metrics.jsonl").read_text())
    print((settings.folder/"rollouts/step-000001.jsonl").read_text()[:3000])
    t=time.perf_counter()
    print(train(settings), time.perf_counter()-t)
