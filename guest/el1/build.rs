//! Links the program as an arm64 `Image`: a flat file that starts with the header.

fn main() {
    println!("cargo::rerun-if-changed=image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo::rustc-link-arg-bins=-T{folder}/image.ld");
        println!("cargo::rustc-link-arg-bins=--oformat=binary");
    }
}
