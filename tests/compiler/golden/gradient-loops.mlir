module {
  func.func @mx_sum(%arg0: memref<32xf32>, %arg1: memref<8xf32>, %arg2: memref<32xf32>, %arg3: memref<1xf32>) {
    %c1 = arith.constant 1 : index
    %c0 = arith.constant 0 : index
    scf.parallel (%arg4) = (%c0) to (%c1) step (%c1) {
      %c4 = arith.constant 4 : index
      %cst = arith.constant 0.000000e+00 : f32
      %0 = scf.for %arg5 = %c0 to %c4 step %c1 iter_args(%arg6 = %cst) -> (f32) {
        %c8 = arith.constant 8 : index
        %cst_0 = arith.constant 0.000000e+00 : f32
        %1 = scf.parallel (%arg7) = (%c0) to (%c8) step (%c1) init (%cst_0) -> f32 {
          %3 = arith.muli %arg5, %c8 : index
          %4 = arith.addi %3, %arg7 : index
          %5 = memref.load %arg0[%4] : memref<32xf32>
          %6 = memref.load %arg1[%arg7] : memref<8xf32>
          %7 = arith.mulf %5, %6 : f32
          %8 = math.tanh %7 : f32
          memref.store %8, %arg2[%4] : memref<32xf32>
          scf.reduce(%8 : f32) {
          ^bb0(%arg8: f32, %arg9: f32):
            %9 = arith.addf %arg8, %arg9 fastmath<reassoc,contract> : f32
            scf.reduce.return %9 : f32
          }
        }
        %2 = arith.addf %arg6, %1 fastmath<reassoc,contract> : f32
        scf.yield %2 : f32
      }
      scf.for %arg5 = %c0 to %c4 step %c1 {
        %c8 = arith.constant 8 : index
        scf.parallel (%arg6) = (%c0) to (%c8) step (%c1) {
          %1 = arith.muli %arg5, %c8 : index
          %2 = arith.addi %1, %arg6 : index
          %3 = memref.load %arg2[%2] : memref<32xf32>
          scf.reduce 
        }
      }
      memref.store %0, %arg3[%c0] : memref<1xf32>
      scf.reduce 
    }
    return
  }
  func.func @mx_sum_2(%arg0: memref<32xf32>, %arg1: memref<32xf32>, %arg2: memref<8xf32>) {
    %c8 = arith.constant 8 : index
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    scf.parallel (%arg3) = (%c0) to (%c8) step (%c1) {
      %cst = arith.constant 1.000000e+00 : f32
      %0 = memref.load %arg0[%arg3] : memref<32xf32>
      %1 = arith.mulf %0, %0 : f32
      %2 = arith.subf %cst, %1 : f32
      %3 = memref.load %arg1[%arg3] : memref<32xf32>
      %4 = arith.mulf %2, %3 : f32
      %5 = arith.addi %arg3, %c8 : index
      %6 = memref.load %arg0[%5] : memref<32xf32>
      %7 = arith.mulf %6, %6 : f32
      %8 = arith.subf %cst, %7 : f32
      %9 = memref.load %arg1[%5] : memref<32xf32>
      %10 = arith.mulf %8, %9 : f32
      %11 = arith.addf %4, %10 : f32
      %c16 = arith.constant 16 : index
      %12 = arith.addi %arg3, %c16 : index
      %13 = memref.load %arg0[%12] : memref<32xf32>
      %14 = arith.mulf %13, %13 : f32
      %15 = arith.subf %cst, %14 : f32
      %16 = memref.load %arg1[%12] : memref<32xf32>
      %17 = arith.mulf %15, %16 : f32
      %18 = arith.addf %11, %17 : f32
      %c24 = arith.constant 24 : index
      %19 = arith.addi %arg3, %c24 : index
      %20 = memref.load %arg0[%19] : memref<32xf32>
      %21 = arith.mulf %20, %20 : f32
      %22 = arith.subf %cst, %21 : f32
      %23 = memref.load %arg1[%19] : memref<32xf32>
      %24 = arith.mulf %22, %23 : f32
      %25 = arith.addf %18, %24 : f32
      memref.store %25, %arg2[%arg3] : memref<8xf32>
      scf.reduce 
    }
    return
  }
}
