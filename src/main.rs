//! The `postwire` program: everything is in [`cli`], which uses only the library's public API.

mod cli;

fn main() {
    cli::main()
}
