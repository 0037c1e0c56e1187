//! The program behind the plugin `nat`: the proxy, and the gateway that the proxy starts.

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    vdens_nat::program(&arguments)
}
