//! Links the program as a flat file that starts with its first instruction.

fn main() {
    println!("cargo::rerun-if-changed=flat.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo::rustc-link-arg-bins=-T{folder}/flat.ld");
        println!("cargo::rustc-link-arg-bins=--oformat=binary");
    }
}
