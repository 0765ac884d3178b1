"""an image folder, a torchvision data set or digits → WebDataset shards."""

if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["shards", *sys.argv[1:]])
