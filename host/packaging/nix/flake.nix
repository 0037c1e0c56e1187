# nix build '.?dir=host/packaging/nix' at the top of the repository.
{
  description = "Network namespaces plugged into virtual Ethernet, without root";
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
  outputs =
    { self, nixpkgs }:
    let
      each = nixpkgs.lib.genAttrs [ "x86_64-linux" "aarch64-linux" ];
      root = ../../..;
      manifest = builtins.fromTOML (builtins.readFile (root + "/Cargo.toml"));
    in
    {
      packages = each (
        system:
        let
          pkgs = nixpkgs.legacyPackages.${system};
        in
        {
          default = pkgs.rustPlatform.buildRustPackage {
            pname = "vdens-rs";
            version = manifest.workspace.package.version;
            src = root;
            cargoLock.lockFile = root + "/Cargo.lock";
            cargoBuildFlags = [ "--workspace" "--exclude" "vdens-tests" ];
            # They need root, foreign programs and a machine of their own.
            doCheck = false;
            installPhase = ''
              runHook preInstall
              patchShebangs host/packaging
              CARGO_TARGET_DIR=target/${pkgs.stdenv.hostPlatform.rust.rustcTarget} \
                host/packaging/install PREFIX=$out DESTDIR=/
              runHook postInstall
            '';
            meta = {
              description = "Network namespaces plugged into virtual Ethernet, without root";
              license = with pkgs.lib.licenses; [ mit asl20 ];
              mainProgram = "vdens";
              platforms = pkgs.lib.platforms.linux;
            };
          };
        }
      );
    };
}
