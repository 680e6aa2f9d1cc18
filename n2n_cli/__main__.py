from n2n_cli.cli import main

if __name__ == "__main__":  # a study's processes import this module again
    raise SystemExit(main())
