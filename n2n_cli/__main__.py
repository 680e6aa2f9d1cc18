from n2n_cli.cli import main

raise SystemExit(main())
