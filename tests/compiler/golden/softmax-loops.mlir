module {
  func.func @mx_max_sum(%arg0: memref<32xf32>, %arg1: memref<32xf32>) {
    %alloca = memref.alloca() {alignment = 64 : i64} : memref<8xf32>
    %c4 = arith.constant 4 : index
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    scf.parallel (%arg2) = (%c0) to (%c4) step (%c1) {
      %c8 = arith.constant 8 : index
      %cst = arith.constant 0xFF800000 : f32
      %0 = scf.parallel (%arg3) = (%c0) to (%c8) step (%c1) init (%cst) -> f32 {
        %2 = arith.muli %arg2, %c8 : index
        %3 = arith.addi %2, %arg3 : index
        %4 = memref.load %arg0[%3] : memref<32xf32>
        scf.reduce(%4 : f32) {
        ^bb0(%arg4: f32, %arg5: f32):
          %5 = arith.maximumf %arg4, %arg5 : f32
          scf.reduce.return %5 : f32
        }
      }
      %cst_0 = arith.constant 0.000000e+00 : f32
      %1 = scf.parallel (%arg3) = (%c0) to (%c8) step (%c1) init (%cst_0) -> f32 {
        %2 = arith.muli %arg2, %c8 : index
        %3 = arith.addi %2, %arg3 : index
        %4 = memref.load %arg0[%3] : memref<32xf32>
        %5 = arith.subf %4, %0 : f32
        %6 = math.exp %5 : f32
        memref.store %6, %alloca[%arg3] : memref<8xf32>
        scf.reduce(%6 : f32) {
        ^bb0(%arg4: f32, %arg5: f32):
          %7 = arith.addf %arg4, %arg5 fastmath<reassoc,contract> : f32
          scf.reduce.return %7 : f32
        }
      }
      scf.parallel (%arg3) = (%c0) to (%c8) step (%c1) {
        %2 = memref.load %alloca[%arg3] : memref<8xf32>
        %3 = arith.divf %2, %1 : f32
        %4 = arith.muli %arg2, %c8 : index
        %5 = arith.addi %4, %arg3 : index
        memref.store %3, %arg1[%5] : memref<32xf32>
        scf.reduce 
      }
      scf.reduce 
    }
    return
  }
}
