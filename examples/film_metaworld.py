"""Film scripted Meta-World tasks from several cameras and write a table for `fmhar run --dataset table`.

A set that nobody here designed: 50 tasks solved by scripted policies, filmed by fixed cameras, many of them
in pairs of an action and its reversal (door-open, door-close). A person is a seed: it sets where objects
stand, and a little noise on the policy's actions makes every seed move differently.

    python -m venv mw && mw/bin/pip install metaworld "mujoco<4" av packaging imageio
    MUJOCO_GL=egl mw/bin/python examples/film_metaworld.py metaworld --tasks 6 --seeds 4   # a few minutes
    fmhar run metaworld/segments.csv --dataset table --backbone dinov2

Files that are there already are kept. `MUJOCO_GL=osmesa` renders without EGL.
"""

import argparse
import csv
import os
from pathlib import Path

os.environ.setdefault('MUJOCO_GL', 'egl')

import av
import numpy as np

PAIRS = [
    ('door-open-v3', 'door-close-v3'),
    ('drawer-open-v3', 'drawer-close-v3'),
    ('window-open-v3', 'window-close-v3'),
    ('faucet-open-v3', 'faucet-close-v3'),
    ('door-lock-v3', 'door-unlock-v3'),
    ('handle-press-v3', 'handle-pull-v3'),
    ('plate-slide-v3', 'plate-slide-back-v3'),
    ('coffee-push-v3', 'coffee-pull-v3'),
    ('push-v3', 'push-back-v3'),
]
TASKS = [task for pair in PAIRS for task in pair]
CAMERAS = 'corner', 'corner2', 'corner3', 'topview'  # the first is the trained view
COLUMNS = 'path view subject event start end label split fps'.split()


def policy_of(task: str):
    "The scripted policy that solves a task"
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[task]()


def act(
    task: str, seed: int, steps: int, noise: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    "Positions and velocities of everything, step by step, of one solution; no picture yet"
    env, policy = make(task, seed), policy_of(task)
    rng = np.random.default_rng([seed, TASKS.index(task)])
    observation, _ = env.reset(seed=seed)
    states = []
    for _ in range(steps):
        action = np.clip(policy.get_action(observation) + noise * rng.normal(size=4), -1, 1)
        observation, _, _, _, info = env.step(action)
        states.append((env.data.qpos.copy(), env.data.qvel.copy()))
        if info.get('success', 0) and len(states) > 40:
            break
    return env, states


def make(task: str, seed: int):
    "One task with its objects placed by the seed"
    import metaworld

    benchmark = metaworld.MT1(task, seed=seed)
    env = benchmark.train_classes[task]()
    env.set_task(benchmark.train_tasks[seed % len(benchmark.train_tasks)])
    return env.unwrapped


def film(env, states, camera: str, size: int) -> list[np.ndarray]:  # (size, size, 3) uint8 each
    "The same solution seen by one camera; without shadows, which cost five times the rest"
    import mujoco

    frames, shown = [], mujoco.MjvOption()
    shown.sitegroup[:] = 0  # the goal's marker would tell the task
    with mujoco.Renderer(env.model, size, size) as renderer:
        for position, velocity in states[::2]:
            env.data.qpos[:], env.data.qvel[:] = position, velocity
            mujoco.mj_forward(env.model, env.data)
            renderer.update_scene(env.data, camera=camera, scene_option=shown)
            for flag in ('mjRND_SHADOW', 'mjRND_REFLECTION'):
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
            picture = renderer.render()
            upright = (
                picture[::-1, ::-1] if camera.startswith('corner') else picture
            )  # hung upside down
            frames.append(np.ascontiguousarray(upright))
    return frames


def write(path: Path, frames: list[np.ndarray], fps: int):
    "One H.264 file, whole or not there"
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f'.{path.name}')
    with av.open(str(tmp), 'w', format='mp4') as container:
        height, width = frames[0].shape[:2]
        stream = container.add_stream('libx264', fps, width=width, height=height)
        stream.pix_fmt, stream.options = 'yuv420p', {'crf': '20', 'preset': 'veryfast'}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    os.replace(tmp, path)


def split_of(seed: int, seeds: int) -> str:
    "A quarter of the seeds test, an eighth validate, the rest train"
    if seed >= seeds - max(1, seeds // 4):
        return 'test'
    return 'val' if seed >= seeds - max(1, seeds // 4) - max(1, seeds // 8) else 'train'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--tasks', type=int, default=len(TASKS), help='the first so many')
    parser.add_argument('--seeds', type=int, default=12)
    parser.add_argument('--takes', type=int, default=2, help='solutions of a task by a seed')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--steps', type=int, default=120, help='at most, of a solution')
    parser.add_argument('--noise', type=float, default=0.15, help='on the actions')
    args = parser.parse_args()
    rows, fps = [], 20
    for task in TASKS[: args.tasks]:
        for seed in range(args.seeds):
            for take in range(args.takes):
                event = f'{task}/{seed}/{take}'
                paths = {c: args.out / c / f'{task}_{seed}_{take}.mp4' for c in CAMERAS}
                if not all(p.exists() for p in paths.values()):
                    env, states = act(task, seed * args.takes + take, args.steps, args.noise)
                    for camera, path in paths.items():
                        write(path, film(env, states, camera, args.size), fps)
                    env.close()
                    print(event, len(states), flush=True)
                for camera, path in paths.items():
                    with av.open(str(path)) as container:
                        n = container.streams.video[0].frames
                    where = path.relative_to(args.out)
                    label = task.removesuffix('-v3').replace('-', '_')
                    split = split_of(seed, args.seeds)
                    rows.append((where, camera, f's{seed}', event, 0, n, label, split, fps))
    with open(args.out / 'segments.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, 'recording'])
        writer.writerows((*row, f'{row[1]}/{row[2]}') for row in rows)


if __name__ == '__main__':
    main()
