"""an image folder, a torchvision data set or digits → WebDataset shards."""

if __name__ == "__main__":
    from coreset_ray.cli import main

    main(["shards"])
