//! The smallest KVM VMM whose guest's time is right: [`vmm`]. Needs an arm64 host with KVM.

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "KVM is given the address of the guest's memory")]
mod vmm;

#[cfg(target_arch = "aarch64")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    vmm::main()
}

#[cfg(not(target_arch = "aarch64"))]
fn main() {
    eprintln!("this example needs an arm64 host with KVM");
}
