"""`videoar convert`: a public checkpoint of another project as a folder of this one."""

import time
from argparse import Namespace

from videoar.runtime.cli_models import print_json
from videoar.runtime.convert import convert_infinity_vae


def run(args: Namespace) -> None:
    """Convert one file.

    Raises:
        CheckpointError: the file cannot be used, or the folder not be written.
    """
    begin = time.perf_counter()
    # The parser knows this one format only.
    assert args.format == "infinity-vae"
    tokenizer = convert_infinity_vae(args.source, args.output, inflated=args.inflate)
    config = tokenizer.config
    facts = {
        "path": str(args.output),
        "source": str(args.source),
        "component": "video_tokenizer",
        "inflated": args.inflate,
        "latent_dim": config.latent_dim,
        "channels": config.channels,
        "spatial_compression": config.spatial_compression,
        "temporal_compression": config.temporal_compression,
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "timings": {"total": time.perf_counter() - begin},
    }
    if args.json:
        print_json(facts)
        return
    form = "3D, inflated" if args.inflate else "2D"
    print(
        f"{facts['path']}: video tokenizer ({form}), d = {config.latent_dim}, "
        f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['timings']['total']:.1f} s"
    )
